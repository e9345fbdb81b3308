"""Features -> what is stored of an image: whitened vectors and packed patches."""
