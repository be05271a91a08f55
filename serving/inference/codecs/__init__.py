"""One codec per wire format: JSON rows and the Open Inference Protocol."""
