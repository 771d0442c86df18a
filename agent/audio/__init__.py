"""Sound: from a source to raw audio that is kept, from there to segments of clean speech."""
