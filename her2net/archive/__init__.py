"""Model archives: a trained model as one file that executes nothing, checked before it may be used."""
