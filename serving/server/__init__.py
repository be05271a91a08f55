"""The ASGI application, its workers, and the start of the process."""
