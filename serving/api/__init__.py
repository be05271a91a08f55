"""The FastAPI application: paths that are requested rarely, the OpenAPI document, and the page."""
