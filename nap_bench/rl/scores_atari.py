"""Scores of a random player and of a human in the 57 games, by which Atari scores are made comparable.

From dqn_zoo/atari_data.py of google-deepmind/dqn_zoo (commit 45061f4): mean returns from 1 to 30 no-ops on, episodes of at most
108,000 frames, a random player and a professional human tester. Not the numbers of Mnih et al. 2015. Games are named as their ROMs.
"""

from __future__ import annotations

from nap_bench.spec import nearest

HUMAN_RANDOM = {
    "alien": (227.8, 7127.7),
    "amidar": (5.8, 1719.5),
    "assault": (222.4, 742.0),
    "asterix": (210.0, 8503.3),
    "asteroids": (719.1, 47388.7),
    "atlantis": (12850.0, 29028.1),
    "bank_heist": (14.2, 753.1),
    "battle_zone": (2360.0, 37187.5),
    "beam_rider": (363.9, 16926.5),
    "berzerk": (123.7, 2630.4),
    "bowling": (23.1, 160.7),
    "boxing": (0.1, 12.1),
    "breakout": (1.7, 30.5),
    "centipede": (2090.9, 12017.0),
    "chopper_command": (811.0, 7387.8),
    "crazy_climber": (10780.5, 35829.4),
    "defender": (2874.5, 18688.9),
    "demon_attack": (152.1, 1971.0),
    "double_dunk": (-18.6, -16.4),
    "enduro": (0.0, 860.5),
    "fishing_derby": (-91.7, -38.7),
    "freeway": (0.0, 29.6),
    "frostbite": (65.2, 4334.7),
    "gopher": (257.6, 2412.5),
    "gravitar": (173.0, 3351.4),
    "hero": (1027.0, 30826.4),
    "ice_hockey": (-11.2, 0.9),
    "jamesbond": (29.0, 302.8),
    "kangaroo": (52.0, 3035.0),
    "krull": (1598.0, 2665.5),
    "kung_fu_master": (258.5, 22736.3),
    "montezuma_revenge": (0.0, 4753.3),
    "ms_pacman": (307.3, 6951.6),
    "name_this_game": (2292.3, 8049.0),
    "phoenix": (761.4, 7242.6),
    "pitfall": (-229.4, 6463.7),
    "pong": (-20.7, 14.6),
    "private_eye": (24.9, 69571.3),
    "qbert": (163.9, 13455.0),
    "riverraid": (1338.5, 17118.0),
    "road_runner": (11.5, 7845.0),
    "robotank": (2.2, 11.9),
    "seaquest": (68.4, 42054.7),
    "skiing": (-17098.1, -4336.9),
    "solaris": (1236.3, 12326.7),
    "space_invaders": (148.0, 1668.7),
    "star_gunner": (664.0, 10250.0),
    "surround": (-10.0, 6.5),
    "tennis": (-23.8, -8.3),
    "time_pilot": (3568.0, 5229.2),
    "tutankham": (11.4, 167.6),
    "up_n_down": (533.4, 11693.2),
    "venture": (0.0, 1187.5),
    "video_pinball": (16256.9, 17667.9),
    "wizard_of_wor": (563.5, 4756.5),
    "yars_revenge": (3092.9, 54576.9),
    "zaxxon": (32.5, 9173.3),
}
"""Game: (random, human)."""
GAMES = tuple(sorted(HUMAN_RANDOM))

RAINBOW_PUBLISHED = {
    "alien": (9491.7, 3513.6),
    "amidar": (5131.2, 2549.0),
    "assault": (14198.5, 3303.9),
    "asterix": (428200.3, 17751.1),
    "asteroids": (2712.8, 1469.3),
    "atlantis": (826659.5, 789674.7),
    "bank_heist": (1358.0, 1080.0),
    "battle_zone": (62010.0, 40583.0),
    "beam_rider": (16850.2, 6249.0),
    "berzerk": (2545.6, 819.9),
    "bowling": (30.0, 38.5),
    "boxing": (99.6, 98.6),
    "breakout": (417.5, 111.3),
    "centipede": (8167.3, 6550.3),
    "chopper_command": (16654.0, 12402.2),
    "crazy_climber": (168788.5, 145811.1),
    "defender": (55105.0, None),
    "demon_attack": (111185.2, 16168.3),
    "double_dunk": (-0.3, 22.2),
    "enduro": (2125.9, 2184.2),
    "fishing_derby": (31.3, 42.1),
    "freeway": (34.0, 33.7),
    "frostbite": (9590.5, 8322.8),
    "gopher": (70354.6, 10149.3),
    "gravitar": (1419.3, 1264.5),
    "hero": (55887.4, 46563.0),
    "ice_hockey": (1.1, -0.1),
    "jamesbond": (None, 1045.4),
    "kangaroo": (14637.5, 12819.5),
    "krull": (8741.5, 4192.9),
    "kung_fu_master": (52181.0, 26471.2),
    "montezuma_revenge": (384.0, 490.9),
    "ms_pacman": (5380.4, 3929.8),
    "name_this_game": (13136.0, 9104.7),
    "phoenix": (108528.6, 8400.2),
    "pitfall": (0.0, -11.1),
    "pong": (20.9, 20.1),
    "private_eye": (4234.0, 21355.9),
    "qbert": (33817.5, 18050.2),
    "riverraid": (None, 20817.0),
    "road_runner": (62041.0, 54684.4),
    "robotank": (61.4, 65.4),
    "seaquest": (15898.9, 9820.0),
    "skiing": (-12957.8, -28489.4),
    "solaris": (3560.3, 1804.1),
    "space_invaders": (18789.0, 4075.1),
    "star_gunner": (127029.0, 57215.8),
    "surround": (9.7, None),
    "tennis": (0.0, -0.4),
    "time_pilot": (12926.0, 12091.0),
    "tutankham": (241.0, 238.1),
    "up_n_down": (None, 36361.1),
    "venture": (5.5, 1538.3),
    "video_pinball": (533936.5, 457525.0),
    "wizard_of_wor": (17862.5, 7825.4),
    "yars_revenge": (102557.0, 44908.7),
    "zaxxon": (22209.5, 14686.5),
}
"""Game: (Hessel et al. 2018, Dopamine); None where the source has none. By other protocols than ours, and than each other's.

Hessel et al.: the paper's score from no-op starts, best agent evaluated again, as seungjaeryanlee/rldb (commit 8c471c4, MIT)
transcribed it, 54 games. Dopamine: Rainbow's training returns with sticky actions, mean over five seeds of the last five of 200
iterations, from baselines/atari of google/dopamine (commit 5873f54, Apache-2.0), 55 games.
"""


def human_normalised(game: str, score: float) -> float:
    """0 for the random player, 1 for the human; works for arrays of scores, too."""
    if game not in HUMAN_RANDOM:
        raise ValueError(nearest(game, GAMES, "game with a human score"))
    random, human = HUMAN_RANDOM[game]
    return (score - random) / (human - random)
