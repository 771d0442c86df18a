"""Recipe of the speech model: data, noise, training, INT8 export, model card and samples."""
