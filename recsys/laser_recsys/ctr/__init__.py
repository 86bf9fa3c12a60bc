"""What the knowledge does for a CTR model: encoded, adapted, trained with it and without, and compared over seeds."""
