"""Makes Freedoom data: rooms rendered by ViZDoom, exact geometry by a ray caster. Needs the ``render`` extra."""
