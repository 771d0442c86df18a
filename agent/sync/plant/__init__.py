"""What other systems of the site are served with: a connection each, what they see, orders."""
