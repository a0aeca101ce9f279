variable "name" {
  type        = string
  nullable    = false
  description = "Prefix of what is made: the lab's name."
}

variable "fqdn" {
  type        = string
  nullable    = false
  description = "The server's name in the DNS; its machine carries it."
}

variable "image_id" {
  type        = string
  nullable    = false
  description = "Id of the image. A later change plans nothing: replace the machine on purpose with -replace."

  validation {
    condition     = var.image_id != ""
    error_message = "lab_image must name an image, for example Debian-13. See them with: openstack image list"
  }
}

variable "flavor_id" {
  type        = string
  nullable    = false
  description = "Id of the flavor. A change resizes the machine, which stops it for a while."

  validation {
    condition     = var.flavor_id != ""
    error_message = "lab_flavor must name a flavor with 2 cores and 3 GB of memory or more, for example p2-3gb. See them with: openstack flavor list"
  }
}

variable "boot_volume_gb" {
  type        = number
  nullable    = false
  default     = 0
  description = "Size of a volume to boot from, in GB; 0: the flavor's own disk."

  validation {
    condition     = var.boot_volume_gb == 0 || var.boot_volume_gb >= 10
    error_message = "lab_boot_volume_gb must be at least 10, or be left out (the flavor's own disk); it is ${var.boot_volume_gb}."
  }
}

variable "data_volume" {
  type        = string
  nullable    = false
  default     = "none"
  description = "PostgreSQL's volume: 'none' (on the machine's disk), 'manage' (made here), or the id of one that exists."

  validation {
    condition     = can(regex("^[^\\s]+$", var.data_volume))
    error_message = "lab_data_volume must be none, manage, or the name or id of a volume (openstack volume list); it is '${var.data_volume}'."
  }
}

variable "data_volume_gb" {
  type        = number
  nullable    = false
  default     = 20
  description = "Size of the volume that is made, in GB. It can grow later, not shrink."

  validation {
    condition     = var.data_volume_gb >= 5 && floor(var.data_volume_gb) == var.data_volume_gb
    error_message = "lab_data_volume_gb must be a whole number of at least 5; it is ${var.data_volume_gb}."
  }
}

variable "floating_ip" {
  type        = string
  nullable    = false
  default     = ""
  description = "A floating IP that the project has already; empty: one is made."

  validation {
    condition     = var.floating_ip == "" || can(cidrhost("${var.floating_ip}/32", 0))
    error_message = "lab_floating_ip must be an IPv4 address of the project (openstack floating ip list), or be left out; it is ${var.floating_ip}."
  }
}

variable "key_pair" {
  type        = string
  nullable    = false
  default     = ""
  description = "Name of a key pair that exists; empty: one is made of the first admin's key."
}

variable "public_keys" {
  type        = list(string)
  nullable    = false
  description = "The admins' public SSH keys."

  validation {
    condition     = length(var.public_keys) > 0 && alltrue([for key in var.public_keys : can(regex("^(ssh|ecdsa|sk)-", key))])
    error_message = "lab_admins must give at least one public SSH key (ssh-ed25519 AAAA...), or nobody could log in to the new machine."
  }
}

variable "network" {
  type = object({
    network_id         = string
    subnet_id          = string
    security_group_ids = list(string)
  })
  nullable    = false
  description = "Where the machine's port goes; an empty subnet_id leaves the choice to the network."
}

variable "external_network" {
  type        = string
  nullable    = false
  description = "Name of the network that floating IPs come from."
}
