"""What a difference between two runs usually does to the number, by kind of difference.

Only what is published or measured stands here; where from is said in the sentence.
"""

from __future__ import annotations

USUALLY: dict[str, str] = {
    "method": (
        "two methods are expected to differ; whatever else is listed differs besides, and has to "
        "be made equal before the methods are compared."
    ),
    "stream": "other images and labels: the two numbers do not compare.",
    "setting": (
        "the order decides what a method learns from and in which batches: TENT on CIFAR-10-C is "
        "published with 20.0 % continual and 44.1 % mixed (mariodoebler benchmark.md)."
    ),
    "domains": (
        "the mean is over other domains, and without a reset a domain's error also depends on "
        "those that came before it."
    ),
    "subset size": (
        "fewer images are fewer updates and a noisier mean. Two papers' 'ImageNet-C' often differ "
        "in this alone: 5,000 images a corruption are a tenth of the updates of 50,000."
    ),
    "images": (
        "other pixels move the unadapted model's error too, so look at both source errors first: "
        "for two copies of ImageNet-C, one generated, 82.2 and 83.1 % are reported."
    ),
    "open set": "images of unknown classes take part in the updates, though not in the error.",
    "tasks": "another life: the two numbers do not compare.",
    "evaluation": "how often the tests are looked at changes no training, but the anytime metrics.",
    "carry": "whether learning goes on from what the adapter left changes every later task.",
    "reset policy": (
        "without a reset what was learnt carries over: it can help later domains, or errors pile "
        "up until the model collapses, the more so the longer the stream. Methods that keep "
        "nothing between batches do not change."
    ),
    "logits": (
        "logits from after the update have learnt from the very batch they are scored on; papers "
        "mix both, so say which."
    ),
    "normalisation": (
        "constants that the weights were not trained with move the unadapted model and all that is "
        "adapted from it: a ViT reported with 55.8 % error had 49.8 % with the right ones."
    ),
    "backbone": (
        "another network: errors do not compare, gaps to the unadapted model do so roughly at best."
    ),
    "weights": (
        "other weights under one name move every number, baselines included: with a newer timm's "
        "weights of the same ViT, TENT rose from 1.4 to 46.8 % accuracy on shot noise (reported in "
        "mr-eggplant/SAR)."
    ),
    "BN mode": (
        "statistics of the test batch in place of the source's usually help on corrupted images "
        "and hurt where labels come sorted or batches are small: 32.5 to 15.1 % on "
        "Fashion-MNIST-C, 57.1 to 63.0 % on label-sorted CIFAR-10-C arrays (docs/tables.md)."
    ),
    "batch size": (
        "smaller batches are more updates at the same rate and noisier batch statistics, and some "
        "methods select or weigh within the batch."
    ),
    "learning rate": (
        "too high and the model collapses over a long stream, too low and it stays the source "
        "model; a baseline at another rate than its paper's often explains a gap alone."
    ),
    "method options": "each may move the number; 'tta-bench describe --method NAME' explains them.",
    "source data": (
        "statistics, prototypes or replay come from other images, for the methods that use them."
    ),
    "dtype": "usually the last digits; where a threshold selects samples, others may pass it.",
    "seed": (
        "it draws the order of the images and the method's own random numbers: over 3 seeds of "
        "1,000 images a domain most methods have a deviation of 0.0 to 0.3 points (docs/tables.md)."
    ),
    "device": (
        "sums are taken in another order: usually the last digits, but float32 logits of reference "
        "implementations differ by up to 0.6 between thread counts, and updates amplify that."
    ),
    "versions": "usually nothing or the last digits; but a method's code may have changed.",
}
"""Kind of difference to one or two sentences; in the order in which differences are reported."""
