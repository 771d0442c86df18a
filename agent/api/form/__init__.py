"""What is asked and answered: routes, queries, bodies, and the OpenAPI document of them all."""
