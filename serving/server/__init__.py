"""The start of a server, its processes, the ASGI application, and the HTTP protocol."""
