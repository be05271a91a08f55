"""Load a model, decode requests into arrays, and schedule the runs of the model."""
