"""The repository of signed content: keys, targets, publishing, and pieces of it over MQTT."""
