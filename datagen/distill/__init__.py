"""Training a student of PAM's architecture from a datagen dataset."""
