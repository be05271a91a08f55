"""From decoded requests to the model's outputs."""
