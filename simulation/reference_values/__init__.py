"""A study of reference values in the rehearsal: generated hospitals count their patients, and the curves are drawn."""
