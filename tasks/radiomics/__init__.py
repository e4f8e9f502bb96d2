"""Radiomics: numbers that describe a region of an image, and what can be learned from them."""
