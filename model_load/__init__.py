"""The release mode whose model is pulled when the server starts."""
