"""Updates: what is fetched, proved, put in its place, watched, and taken back."""
