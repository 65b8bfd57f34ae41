"""Stand-in models and drawn pictures: the whole service runs offline on them, no weights needed."""
