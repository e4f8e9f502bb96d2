"""The door in: a hospital's files become de-identified cases of its cohort, or reasons why not."""
