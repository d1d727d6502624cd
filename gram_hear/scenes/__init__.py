"""Simulated rooms, sets of RIRs and noise, mixing, and naturalistic versions of HEAR tasks.

What is random is drawn from ``numpy.random.default_rng([*seed, stream, ...])``. Each use of a seed
has a stream number of its own:

==============  ==============================================================================
of a seed       streams
==============  ==============================================================================
a scene         1 room, 2 placement (rooms); 3 binaural, 4 Ambisonic tail (rendering);
                5 noise, 6 its start (single)
a task's clip   0 scene, 1 noise, 2 start of the noise, 3 SNR, 4 scene of a set of RIRs (recipes)
a noise         0 recording and excerpt (noises)
a synthesis     0 noise, 1 sound, 2 clip of sounds (gram_hear.audio.synthesis)
a set of RIRs   split, room, scene and attempt instead of streams (rir_building)
==============  ==============================================================================
"""
