"""A radiomics study over hospitals that do not exist: masks, features, classifiers under privacy, and what came of it."""
