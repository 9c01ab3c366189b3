"""``noise2map calibrate``: fits what a model states to labelled images, and ``experiment shifts``: what is left of it elsewhere."""
