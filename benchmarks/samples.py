"""What the models are asked: known without importing what makes them (models.py)."""

# A file of the store: for each model a row and what it answers.
SAMPLES = "samples.json"
ROW = [5.1, 3.5, 1.4, 0.2]
# Of the slow model and those of many sizes.
FEATURES = 16
