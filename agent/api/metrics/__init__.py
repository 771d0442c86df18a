"""What a scraper sees, in the text format of Prometheus."""
