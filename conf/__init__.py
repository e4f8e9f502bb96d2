"""What is decided before anything runs: the Study, and the choices that Hydra composes."""
