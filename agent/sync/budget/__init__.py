"""The thin line's budget: rate, hours, quota, an operator's orders, and how fast it goes."""
