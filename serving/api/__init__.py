"""FastAPI: documentation, descriptions of the model, and the page."""
