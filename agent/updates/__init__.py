"""Updates: what may be trusted and how it comes here; what is proved, watched, and taken back."""
