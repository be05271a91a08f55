"""What is locked against known vulnerabilities and ends of life: `make audit`."""
