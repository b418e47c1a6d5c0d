# Read by llama-cpp-python's build (CMAKE_PROJECT_llama_cpp_INCLUDE): leave out llama.cpp's
# "common" library (chat parsing, downloads, command lines), of which the Python package uses
# nothing. A normal variable wins over the cache entry that the package forces to ON.
set(LLAMA_BUILD_COMMON OFF)
