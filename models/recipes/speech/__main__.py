"""Everything, in order: data, noise, samples, training, export, model card."""

from . import card, data, export, noise, samples, train

for step in (data, noise, samples, train, export, card):
    step.main()
