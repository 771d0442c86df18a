"""Everything, in order: sounds, noise, samples, training, export, model card."""

from . import card, export, noise, samples, sounds, train

for step in (sounds, noise, samples, train, export, card):
    step.main()
