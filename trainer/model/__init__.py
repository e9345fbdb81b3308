"""Student, teacher, losses and their optimiser."""
