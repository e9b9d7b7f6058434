"""Words and number pairs that only the embedded mixture uses.

Pretraining text is made of nonsense words and of the other number pairs, so that none of these ever
occurs in it (`polylab.pretraining.drills` filters against them, a test proves it).
"""

import hashlib

# ruff: noqa: SIM905  (a list of 539 quoted strings is no easier to read)
NOUNS = tuple(
    """
acorn actor album alley alarm angel ankle apple apron arrow artist atlas attic award baker
ballad bamboo banana band banjo bank barn barrel basin basket bat beach beacon bead beam bean bear
beard beast bed bee beetle bell belt bench berry bike bird blade blanket block boat body bolt bone
book boot border bottle bow bowl box boy brain branch brick bride bridge broom brush bubble bucket
bud bug bulb bull bump bunny bus bush button cabin cabbage cable cactus cage cake camel camera
camp canal candle candy cannon canoe canvas cap cape captain car card carpet carrot cart castle cat
cave cellar chain chair chalk charm chart cherry chest chick chimney church circle city clam class
claw clerk cliff clock cloud clown club coach coal coast coat cobra coin collar colony comet comic
cookie coral corn corner couch court cousin cow crab cradle crane crate crayon creek crew cricket
crop crow crown cube cup curtain cushion daisy dancer deck desk diary dinner dish doctor dog doll
dolphin donkey door dove dragon drawer dream dress drum duck eagle ear earring effort egg elbow
engine errand escape fair fairy farm farmer feather fence ferry field finger fire fist flag flame
flea flood floor flower flute fly forest fork fort fountain fox frame friend frog galaxy garden
garlic gate ghost giant gift girl glacier glass glove goat goblin grape guard guest guitar gull
hammer hand harbor harp hat hawk heart hedge helmet hen hill hinge hive hobby hook horn horse hotel
hour house hunter hut insect island jacket jar jelly jewel judge jug jungle kettle key king kite
kitten knee knight knot label lady ladder lagoon lake lamb lamp lane lantern lawn leg lemon lens
letter lily limb lime lion lip lizard lobby lock log lunch magnet maid mask mast match meadow medal
melon mill miner mirror mitten monk monkey moon moss moth motor mount mouth mule muscle museum nail
napkin neck needle nest net nurse nut oak oar ocean olive onion orange orchard organ otter oven owl
oyster paddle page palace palm panda paper parade parent parrot party path patch paw pea peach pear
pearl pebble pen pencil penny petal piano picnic pig pigeon pillow pilot pin pirate pit planet
plate plum pocket poem poet pond pony pool porch port pot prince puddle pump puppet puppy purse
queen quilt rabbit raft rail ranch rat raven ribbon rider ring river road robin robot rock rocket
roof room rope rose ruby rug ruler sail salad sandal saw scarf school seal seat seed shadow shark
shed shell shield ship shirt shop shore shovel shrub sink sister skirt skunk slide slope snail
snake sock sofa soldier song soup spark spear spider sponge spoon spring squash stable stage stair
star statue steam stem stick stone stool storm story stove straw stream street stump sun swamp swan
sword table tail tailor target teacher temple tent throne thumb ticket tiger tile toad toast torch
tower town toy track trail train trap tray tree trench tribe truck trumpet trunk tub tulip tunnel
turkey turtle twig uncle valley van vase vest video village vine violin visitor wagon waist walnut
wall wand wasp watch wave weapon web weed whale wheat wheel whip wing winter witch wizard worm
wrist yard zebra
""".split()
)

LARGEST_NUMBER = 99


def is_reserved(a: int, b: int) -> bool:
    """Whether the unordered number pair belongs to the mixture; pretraining uses the other ones.

    40 of 100 pairs are reserved, by a hash of the pair: neither side keeps a list.
    """
    key = f"{min(a, b)}+{max(a, b)}".encode()
    return hashlib.sha256(key).digest()[0] < 102


def plural(noun: str) -> str:
    """Regular English plural: `-es` after a sibilant, `-ies` for a consonant and `y`, else `-s`."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


PLURALS = frozenset(map(plural, NOUNS))
