"""REST by transcoding: google.api.http rules as routes, requests into messages and replies out of them."""
