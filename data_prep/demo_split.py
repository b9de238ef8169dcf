"""Who is trained on for the demonstration weights, and who only validated on.

Names are those of portraits without suffix, and of videos. A person is in one split only.
"""

from __future__ import annotations

# Portraits animated for the scores, of each kind of source some.
_VALIDATION = """
  faker_female_512_10 faker_female_512_36 faker_female_512_46 faker_female_512_63
  faker_female_512_94 faker_male_512_18 faker_male_512_23 faker_male_512_45 faker_male_512_67
  gov_al-green gov_alan-lowenthal gov_christopher-sununu gov_frederica-wilson gov_grace-meng
  gov_johnny-isakson gov_mark-gordon gov_tammy-baldwin gov_william-walker webmorph_canada_010f
  webmorph_canada_048f webmorph_canada_116m webmorph_neutral_front_003_03
  webmorph_neutral_front_020_03 webmorph_smiling_front_026_08 webmorph_smiling_front_102_08
"""
VALIDATION = _VALIDATION.split()

# Whole real clips for the scores.
REAL_VALIDATION = ["musetalk_sun", "videoretalking_3", "videoretalking_4"]

REAL_TRAINING = [
  f"liveportrait_{name}" for name in ("d0", "d6", "d10", "d12", "d14", "d18", "d19", "s18")
]

# Portraits of people in a real validation clip (videoretalking_3).
SAME_PERSON = {"gov_alexandria-ocasio-cortez"}

# All portraits that are never trained on: those that the index has for validation, and the above.
_HELD_OUT = """
  faker_female_512_10 faker_female_512_19 faker_female_512_36 faker_female_512_39
  faker_female_512_46 faker_female_512_47 faker_female_512_52 faker_female_512_60
  faker_female_512_63 faker_female_512_7 faker_female_512_84 faker_female_512_94 faker_male_512_15
  faker_male_512_18 faker_male_512_19 faker_male_512_23 faker_male_512_32 faker_male_512_45
  faker_male_512_56 faker_male_512_59 faker_male_512_67 faker_male_512_88 gov_al-green
  gov_al-lawson gov_alan-lowenthal gov_anthony-brindisi gov_ben-lujan gov_bernard-sanders
  gov_brad-sherman gov_brian-babin gov_brian-higgins gov_carol-miller gov_cathy-mcmorris-rodgers
  gov_charles-grassley gov_chip-roy gov_christopher-smith gov_christopher-sununu gov_darrell-issa
  gov_david-perdue gov_david-trone gov_debbie-stabenow gov_devin-nunes gov_filemon-vela
  gov_frank-lucas gov_frederica-wilson gov_grace-meng gov_gus-bilirakis gov_haley-stevens
  gov_jack-bergman gov_jahana-hayes gov_janet-mills gov_janice-schakowsky gov_jason-crow
  gov_jeffrey-colyer gov_jesus-garcia gov_jim-costa gov_jim-langevin gov_jimmy-gomez
  gov_john-kasich gov_john-kennedy gov_johnny-isakson gov_julia-brownley gov_kurt-schrader
  gov_louie-gohmert gov_lucille-roybal-allard gov_lucy-mcbath gov_marco-rubio gov_mark-desaulnier
  gov_mark-gordon gov_martha-mcsally gov_mary-gay-scanlon gov_matt-gaetz gov_matthew-mead
  gov_michael-cloud gov_michael-dewine gov_mike-crapo gov_mike-thompson gov_nancy-pelosi
  gov_pat-roberts gov_ralph-northam gov_richard-burr gov_rick-allen gov_rick-scott gov_rob-portman
  gov_roy-blunt gov_scott-peters gov_sean-casten gov_shelia-jackson-lee gov_shelley-capito
  gov_spencer-cox gov_steny-hoyer gov_steve-chabot gov_steve-scalise gov_suzan-delbene
  gov_tammy-baldwin gov_tate-reeves gov_ted-cruz gov_tim-walberg gov_todd-young gov_william-haslam
  gov_william-walker webmorph_canada_010f webmorph_canada_019f webmorph_canada_044f
  webmorph_canada_048f webmorph_canada_095m webmorph_canada_116m webmorph_canada_148m
  webmorph_neutral_front_003_03 webmorph_neutral_front_010_03 webmorph_neutral_front_020_03
  webmorph_neutral_front_022_03 webmorph_neutral_front_024_03 webmorph_neutral_front_026_03
  webmorph_neutral_front_030_03 webmorph_neutral_front_099_03 webmorph_neutral_front_100_03
  webmorph_neutral_front_102_03 webmorph_neutral_front_114_03 webmorph_smiling_front_003_08
  webmorph_smiling_front_010_08 webmorph_smiling_front_020_08 webmorph_smiling_front_022_08
  webmorph_smiling_front_024_08 webmorph_smiling_front_026_08 webmorph_smiling_front_030_08
  webmorph_smiling_front_099_08 webmorph_smiling_front_100_08 webmorph_smiling_front_102_08
  webmorph_smiling_front_114_08
"""
HELD_OUT = SAME_PERSON | set(_HELD_OUT.split())
