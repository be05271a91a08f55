"""Command-line tools to build, deploy, compare, and inspect releases."""
