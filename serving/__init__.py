"""Puts the processes together: config, command line, local launcher, embedded model, chat, doctor, Ray Serve."""
