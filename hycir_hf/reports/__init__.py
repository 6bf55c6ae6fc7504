"""Every page and card that a person reads, made from templates."""
