"""Frame codecs: images to latents and back."""
