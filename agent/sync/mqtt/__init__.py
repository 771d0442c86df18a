"""One MQTT connection and what leads to it: which broker, how, with whom, until when."""
