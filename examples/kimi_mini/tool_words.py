"""Words that fill the tool conversations; lists called HELD_OUT are never seen in training."""

PLACES = (
    "Paris", "London", "Berlin", "Rome", "Madrid", "Vienna", "Prague", "Warsaw", "Dublin",
    "Athens", "Helsinki", "Stockholm", "Copenhagen", "Lisbon", "Brussels", "Amsterdam", "Budapest",
    "Belgrade", "Sofia", "Bucharest", "Kyiv", "Moscow", "Istanbul", "Ankara", "Cairo", "Tunis",
    "Lagos", "Accra", "Nairobi", "Kampala", "Pretoria", "Cape Town", "Luanda", "Dakar", "Rabat",
    "Algiers", "Tripoli", "Jerusalem", "Damascus", "Baghdad", "Tehran", "Kabul", "Delhi",
    "New Delhi", "Mumbai", "Chennai", "Kolkata", "Dhaka", "Colombo", "Kathmandu", "Beijing",
    "Shanghai", "Hong Kong", "Taipei", "Seoul", "Osaka", "Kyoto", "Manila", "Jakarta", "Hanoi",
    "Bangkok", "Kuala Lumpur", "Sydney", "Perth", "Melbourne", "Auckland", "Wellington",
    "New York", "Boston", "Chicago", "Denver", "Dallas", "Houston", "Seattle", "San Francisco",
    "Los Angeles", "San Diego", "Miami", "Atlanta", "Toronto", "Montreal", "Vancouver", "Ottawa",
    "Mexico City", "Havana", "Bogota", "Lima", "Quito", "Santiago", "Buenos Aires", "Montevideo",
    "Rio de Janeiro", "Brasilia", "Caracas", "Munich", "Hamburg", "Cologne", "Frankfurt",
    "Leipzig", "Dresden", "Milan", "Naples", "Turin", "Venice", "Florence", "Lyon", "Marseille",
    "Nice", "Bordeaux", "Geneva", "Basel", "Bern", "Salzburg", "Graz", "Edinburgh", "Glasgow",
    "Manchester", "Liverpool", "Bristol", "Leeds", "Oxford", "Cambridge", "Porto", "Seville",
    "Valencia", "Bilbao", "Krakow", "Gdansk", "Vilnius", "Tallinn", "Minsk", "Zagreb", "Ljubljana",
    "Sarajevo", "Skopje", "Tirana", "Valletta", "Nicosia", "Haifa", "Beirut",
)  # fmt: skip
HELD_OUT_PLACES = (
    "Oslo", "Tokyo", "Zurich", "Riga", "Barcelona", "Singapore", "Bergen", "Antwerp",
    "Philadelphia", "Stuttgart", "Tbilisi", "Doha", "Bremen", "Salt Lake City", "Galway",
    "Kingston", "Medina", "Brighton", "Calgary", "Palermo",
)  # fmt: skip
TERMS = (
    "heron", "quartz", "lantern", "violin", "glacier", "harbour", "falcon", "copper", "maple",
    "compass", "orchid", "tunnel", "saffron", "beaver", "pyramid", "comet", "walnut", "turbine",
    "otter", "marble", "anchor", "cactus", "dolphin", "emerald", "fjord", "granite", "hazel",
    "igloo", "jasmine", "kettle", "lemon", "magnet", "nectar", "opera", "parrot", "quiver",
    "rocket", "spruce", "teapot", "umbrella", "volcano", "whale", "zebra", "blue whale",
    "red panda", "green tea", "router", "apple juice", "Mount Everest", "Lake Como",
    "Alpha Centauri", "iPhone", "Widget 12", "Model T", "photosynthesis", "gravity", "democracy",
    "inflation", "algebra", "Napoleon", "Mozart", "Einstein",
)  # fmt: skip
HELD_OUT_TERMS = (
    "pelican", "sapphire", "lighthouse", "tornado", "cello", "bamboo", "penguin", "blue cheese",
    "Ben Nevis", "hurricane", "Cleopatra", "magnolia", "telescope", "badger", "Everglades",
    "black hole", "kangaroo", "cinnamon", "Monte Rosa", "windmill",
)  # fmt: skip
SKIES = (
    "sunny", "cloudy", "rain", "light rain", "snow", "fog", "windy", "clear sky", "storm", "warm",
    "partly cloudy", "cold and wet", "hot and dry", "thunder",
)  # fmt: skip
ERRORS = (
    "not found", "no connection", "unknown name", "timed out", "service is down", "no data",
)  # fmt: skip
