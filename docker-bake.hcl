// A target for each image. scripts/build.py sets the variables and the base from VERSION and patches/upstream.toml
// (python -m scripts.build --help). The tag with UPSTREAM moves; the tag with VERSION never changes. In the registry
// the tags of cpu-amd64 cover both platforms (python -m scripts.publish --help).

variable "IMAGE" { default = "docker.io/devfox101/mt-photos-ml" }
variable "UPSTREAM" { default = "v2.5.6" } // set by scripts/bump.py
variable "VERSION" { default = "${UPSTREAM}-dev" }
variable "REVISION" { default = "" }

// for a manual build, `docker buildx bake cpu-amd64`, which uses the base's tag; scripts/build.py uses its digest
variable "UPSTREAMS" { default = "ghcr.io/immich-app/immich-machine-learning" }

group "default" {
  targets = ["cpu", "cuda", "openvino", "armnn", "rknn", "rocm"]
}

group "cpu" {
  targets = ["cpu-amd64", "cpu-arm64"]
}

target "image" {
  name = image.target
  matrix = {
    image = [
      { target = "cpu-amd64", platform = "linux/amd64", base = "", tag = "" },
      { target = "cpu-arm64", platform = "linux/arm64", base = "", tag = "-arm" },
      { target = "cuda", platform = "linux/amd64", base = "-cuda", tag = "-cuda" },
      { target = "openvino", platform = "linux/amd64", base = "-openvino", tag = "-openvino" },
      { target = "armnn", platform = "linux/arm64", base = "-armnn", tag = "-armnn" },
      { target = "rknn", platform = "linux/arm64", base = "-rknn", tag = "-rknn" },
      { target = "rocm", platform = "linux/amd64", base = "-rocm", tag = "-rocm" },
    ]
  }
  context   = "."
  platforms = [image.platform]
  args = {
    BASE     = "${UPSTREAMS}:${UPSTREAM}${image.base}"
    SOURCE   = "${UPSTREAMS}:${UPSTREAM}"
    VERSION  = VERSION
    REVISION = REVISION
  }
  tags = ["${IMAGE}:${VERSION}${image.tag}", "${IMAGE}:${UPSTREAM}${image.tag}"]
}
