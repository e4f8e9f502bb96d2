"""Quality of images as plain numbers: what they are, who is outside a study's limits, where a patient stands."""
