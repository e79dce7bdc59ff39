"""What differs between families of models: one package each, and what they share.

The algorithm reaches a family through ``comp.adapter`` alone.
"""
