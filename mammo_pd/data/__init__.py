"""Tables and pixels between the stages: manifest, labels, splits, store, data sets."""
