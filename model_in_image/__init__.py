"""The release mode whose model is a layer of the server's image."""
