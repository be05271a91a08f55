"""Sample rows of the models, apart from models.py, whose imports are heavy."""

# A file in the store: a row and its prediction for each model.
SAMPLES = "samples.json"
ROW = [5.1, 3.5, 1.4, 0.2]
# Number of features of the slow model and of the sized ones.
FEATURES = 16
