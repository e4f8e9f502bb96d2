"""Rehearsals of a study of an intensity scale, and free patients who wear one."""
